"""The comparison: rows measured in turn, the record, the table, pictures and the report."""
