"""``sql``: statements for a database."""
