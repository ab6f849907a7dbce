"""Pages that need no network: charts, tables and pictures in one file, from numbers and files alone."""
