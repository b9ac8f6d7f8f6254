"""Generated packages inside other programs: one folder for each, importing nothing of the others.

Contains: what translates another program's caches, masks and settings into a generated package's arguments.
Must not contain: attention (that is generated), or an import of the other program outside its own folder.
"""
