"""The command line: the server, its operator's commands, and a client for applications.

`main` puts the commands together; what is slow to import is imported by the command that needs it.
"""
