"""A pipeline to look at: its stages and their figures as text, as a table and as a page. Reads files only."""
