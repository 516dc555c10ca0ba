"""Run the gateway alone, with settings from the environment: `python -m service`."""

from service.app import serve
from service.settings import GatewaySettings

if __name__ == "__main__":
    serve(GatewaySettings())
