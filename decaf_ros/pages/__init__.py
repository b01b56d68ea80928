"""HTML pages in one file, which need no network and no scripts, and their charts."""
