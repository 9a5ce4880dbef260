"""Event routes: the user's handlers, how they are loaded, and how they are kept from harm."""
