"""One conversation with an ACME server (RFC 8555, http-01), by the ``acme`` library. Blocking: for a thread.

Imported only where certificates are asked for: the library is an extra. Never keeps anything.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from acme import challenges, client, crypto_util, errors, messages
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC

from roost.gateway.acme_store import Store, key_pem, new_key
from roost.ports.errors import Denied, Invalid, Retry, RoostError
from roost.proxy import policy

TIMEOUT_S = 30
RATE_LIMIT_S = 3600.0
"""Not asked again for this long where the server limits us and does not say for how long."""
NONCES = 5
"""Times a request may be refused for its nonce."""
Publish = Callable[[dict[str, str]], None]
"""Makes these answers known (token to key authorization) before it returns; empty = no more."""


class Limited(Retry):
    """The server's rate limit: it says when to come back."""


class _Network(client.ClientNetwork):
    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        # The library repeats a request whose nonce was refused once; busy servers refuse more.
        for _ in range(NONCES - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


def issue(settings: policy.Acme, store: Store, name: str, publish: Publish) -> tuple[bytes, bytes]:
    """A certificate chain for ``name`` and its key, PEM. Raises ``RoostError`` with the reason."""
    account_key = JWKEC(key=store.account_key())
    net = _Network(
        account_key,
        alg=ES256,
        user_agent="roost",
        timeout=TIMEOUT_S,
        # The library says bool, and hands it to requests, where a path is a file of authorities.
        verify_ssl=settings.ca or True,  # type: ignore[arg-type]
    )
    waits: list[float] = []

    def note(response: requests.Response, *args: Any, **kwargs: Any) -> None:
        after = response.headers.get("Retry-After", "")
        if response.status_code in (429, 503) and after.isdigit():
            waits.append(float(after))

    net.session.hooks["response"].append(note)
    with _explained(name, waits):
        talk = client.ClientV2(client.ClientV2.get_directory(settings.directory, net), net)
        _sign_in(settings, store, talk)
        return _order(talk, account_key, name, publish)


def _sign_in(settings: policy.Acme, store: Store, talk: client.ClientV2) -> None:
    known = store.account(settings.directory)
    if known is not None:
        talk.net.account = messages.RegistrationResource(uri=known, body=messages.Registration())
        return
    wanted = messages.NewRegistration.from_data(
        email=settings.contact, terms_of_service_agreed=True
    )
    try:
        uri = talk.new_account(wanted).uri
    except errors.ConflictError as conflict:  # the key is known there already
        uri = conflict.location
        talk.net.account = messages.RegistrationResource(uri=uri, body=messages.Registration())
    store.save_account(settings.directory, uri)


def _order(
    talk: client.ClientV2, account_key: JWK, name: str, publish: Publish
) -> tuple[bytes, bytes]:
    private: ec.EllipticCurvePrivateKey = new_key()
    pem = key_pem(private)
    order = talk.new_order(crypto_util.make_csr(pem, [name]))
    answers = []
    tokens: dict[str, str] = {}
    for authorization in order.authorizations:
        if authorization.body.status == messages.STATUS_VALID:
            continue
        found = [
            one for one in authorization.body.challenges if isinstance(one.chall, challenges.HTTP01)
        ]
        if not found:
            raise Denied(f"the ACME server does not offer http-01 for {name}")
        response, validation = found[0].response_and_validation(account_key)
        tokens[found[0].chall.encode("token")] = validation
        answers.append((found[0], response))
    try:
        if tokens:
            publish(tokens)
        for challenge, response in answers:
            talk.answer_challenge(challenge, response)
        done = talk.poll_and_finalize(order)
    finally:
        if tokens:
            publish({})
    return done.fullchain_pem.encode(), pem


@contextmanager
def _explained(name: str, waits: list[float]) -> Iterator[None]:
    """The library's errors as ours."""
    try:
        yield
    except messages.Error as error:
        if error.code == "rateLimited":
            after_s = max(waits, default=RATE_LIMIT_S)
            raise Limited(f"{name}: rate limit: {error.detail}", after_s=after_s) from error
        if error.code == "accountDoesNotExist":
            raise Denied(f"{name}: the ACME server does not know our account") from error
        raise Denied(f"{name}: the ACME server refused: {error.detail}") from error
    except errors.ValidationError as error:
        details = [
            str(challenge.error.detail)
            for failed in error.failed_authzrs
            for challenge in failed.body.challenges
            if challenge.error is not None
        ]
        raise Denied(
            f"{name}: not proved: {'; '.join(details)}",
            hint="the name must lead to this gateway's port 80 from the outside",
        ) from error
    except (errors.Error, requests.RequestException, JoseError) as error:
        after_s = max(waits, default=0.0)
        if after_s:
            raise Limited(f"{name}: {error}", after_s=after_s) from error
        raise Retry(f"{name}: the ACME server: {error}") from error
    except (RoostError, OSError):
        raise
    except (ValueError, KeyError, AttributeError) as error:  # an answer the library cannot read
        raise Invalid(f"{name}: the ACME server's answer is not ACME: {error!r}") from error
