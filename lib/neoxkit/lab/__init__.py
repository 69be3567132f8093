"""What a notebook shows and takes: pictures, tables and dials."""
