"""The thin typed-route layer both northbound APIs stand on, and its OpenAPI document. Knows no domain word."""
