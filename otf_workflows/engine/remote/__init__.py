"""jobflow-remote as the engine: compute nodes need no database, the runner carries files for them.

Imported only where the site file says ``engine: jobflow-remote``; everything else works without
the package.
"""
