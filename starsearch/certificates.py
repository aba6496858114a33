"""Why a server's TLS certificate was not believed, found in the error of whichever HTTP client: each wraps it in its own way."""

import ssl


def distrust(error: BaseException) -> str | None:
    """What is wrong with the certificate, and what to do; None where the error is about something else."""
    cause: BaseException | None = error
    while cause is not None:
        found = getattr(cause, "certificate_error", cause)  # as aiohttp keeps it
        if isinstance(found, ssl.SSLCertVerificationError):
            return (
                f"its certificate is refused ({found.verify_message}): if it is your own authority's, name that one's file in "
                "SSL_CERT_FILE; the check cannot be switched off"
            )
        cause = cause.__cause__ or cause.__context__
    return None
