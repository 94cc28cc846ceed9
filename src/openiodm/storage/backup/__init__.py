"""Backups: one consistent view of all rows and the package files, as plain files; and databases made from them.

`layout` says what a backup is made of and checks it, `write` makes one beside running servers, `load` makes a database
from one, `aftermath` takes from that database what it only believes (ADR 23).
"""
