"""`python -m service`: the gateway alone, with settings from the environment."""

from service.server import serve
from service.settings import GatewaySettings

if __name__ == "__main__":
    serve(GatewaySettings())
