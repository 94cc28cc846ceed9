"""The core: campaigns (the contract's tasks), their upgrades (one per device), and the rules both follow."""
