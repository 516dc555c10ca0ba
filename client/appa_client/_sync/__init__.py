"""The client without asyncio, generated from `appa_client._async`."""
