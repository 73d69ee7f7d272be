"""The registry client: HTTP, authentication, proxies, deadlines and retries."""
