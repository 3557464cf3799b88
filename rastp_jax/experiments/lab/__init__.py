"""The laboratory's parts: rows (what is compared), screen, training, cost, and the page that shows them."""
