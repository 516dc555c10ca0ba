"""The client for asyncio, written by hand; `appa_client._sync` is generated from it."""
