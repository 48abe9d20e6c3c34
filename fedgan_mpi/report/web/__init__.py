"""Self-contained HTML pages: tables, images, and charts that show values under the pointer."""
