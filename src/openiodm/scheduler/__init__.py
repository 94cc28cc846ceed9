"""Work that is due: leases job rows, runs their handlers, retries with back-off. Knows no domain word."""
