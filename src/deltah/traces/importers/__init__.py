"""One file a format: importing this package registers the formats of `deltah.traces.importing.IMPORTERS`."""

from importlib import import_module
from pkgutil import iter_modules

from deltah.traces import record as record  # our own stands first where the formats are listed

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
