"""Reverse diffusion samplers that azula lacks, and the control that its own ones lack."""
