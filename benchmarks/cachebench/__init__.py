"""The cache benchmark in parts: rows, rivals, preparation, screening, measuring, record, targets, plot, page."""
