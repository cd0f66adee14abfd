"""MQTT 3.1.1 as a client: packets, and one connection."""
