"""Who may ask: applications, their secrets and tokens, gateway tokens, flow control."""
