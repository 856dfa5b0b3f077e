"""Networks, on diffusers' model classes; nothing else imports diffusers."""
