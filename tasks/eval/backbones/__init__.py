"""Neural backbones of the evaluation, one a file: plug-ins on weights that the user gives, or that a package brings.

Each module has a function `load(source, device)`; `plugin_table` names them. No file is read when one is imported.
"""
