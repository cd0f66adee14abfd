"""What the Open Container Initiative specifies: config.json, bundles, image archives."""
