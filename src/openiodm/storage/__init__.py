"""Rows and bytes: the SQL of every room, the two engines, the writer, the migrations, the package bytes."""
