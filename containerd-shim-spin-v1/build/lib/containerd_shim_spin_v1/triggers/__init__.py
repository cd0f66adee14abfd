"""What calls components: one module for each trigger type."""
