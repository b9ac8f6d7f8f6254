"""Generated packages, one a spec; see MANIFEST.json. Refresh with: vashista-gen generate."""
