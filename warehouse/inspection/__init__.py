"""Looking into a warehouse: one pair with everything around it, and a copy to look into while jobs write."""
