"""The hawkBit DDI v1 contract: what SWUpdate, rauc-hawkbit-updater and Zephyr speak."""
