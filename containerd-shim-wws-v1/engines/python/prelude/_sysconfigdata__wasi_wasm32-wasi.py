"""What `sysconfig` asks: there is no installation. `zoneinfo` reads a path here."""

build_time_vars = {"TZPATH": "/usr/share/zoneinfo"}
