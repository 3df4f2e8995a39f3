"""Load generation and measuring: `inferd bench serve | ops | startup`. A client of the product, part of no server."""
