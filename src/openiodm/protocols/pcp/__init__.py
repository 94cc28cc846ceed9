"""Huawei's PCP: software upgrades in fragments, over any carrier of datagrams. Here it rides on LwM2M's object 19."""
