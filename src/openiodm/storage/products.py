"""Products, interned: one row for every (deviceType, model, manufacturerName)."""

from openiodm.access.model import Product
from openiodm.storage.engine import Tx

_FIND = "SELECT id FROM product WHERE device_type = $1 AND model = $2 AND manufacturer_name = $3"
_INSERT = """
INSERT INTO product (device_type, model, manufacturer_name) VALUES ($1, $2, $3)
ON CONFLICT (device_type, model, manufacturer_name) DO NOTHING
"""


async def product_key(tx: Tx, product: Product) -> int:
    """The product's row, made when it is new. Two servers that meet it at once agree on one row."""
    values = (product.device_type, product.model, product.manufacturer_name)
    key = await tx.fetchval(_FIND, *values)
    if key is None:
        await tx.execute(_INSERT, *values)
        key = await tx.fetchval(_FIND, *values)
    return int(key)
