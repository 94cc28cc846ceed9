"""Devices over LwM2M 1.0 and 1.1: registration, firmware (object 5), software (object 9), PCP (object 19)."""
