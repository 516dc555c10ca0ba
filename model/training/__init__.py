"""Nature run, data sets and training loops; nothing else imports this."""
