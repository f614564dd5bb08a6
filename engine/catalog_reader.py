from engine.catalog import CatalogSnapshot
async def read_catalog(control, database):
    return CatalogSnapshot()
