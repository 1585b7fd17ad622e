"""Pages that people open: style, elements that escape what they are given, tables, pictures, plots, cells of CSV."""
