"""A sweep as plain data: its file, its grid, its records on disk, and the table made from them. No torch."""
