"""The HTTP port: `app.HttpServer`. Routes of features come from `server.extension.http_routes`."""
