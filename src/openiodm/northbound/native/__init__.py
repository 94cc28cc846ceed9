"""The native API, `/api/v1`: what the published contract cannot say."""
