"""report.html: the record as a page in one file. Python decides what is where; the templates hold markup alone."""
