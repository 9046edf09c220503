"""The feature server: latest values over HTTP, closed to whoever brings no valid token."""
