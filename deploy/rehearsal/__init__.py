"""`appa rehearse`: a simulated day of cycles on the real stack, and an audit of what came of it."""
