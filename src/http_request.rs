//! The head of an HTTP request to what it asks for: a method without a body, a path, and which text of the metrics.
//!
//! Never: a body, a connection that is kept, a response. The bytes come from anybody, so all that is wrong with them has an
//! answer.

use httparse::{EMPTY_HEADER, Error, Header, Status};

/// Longest head that is taken, in bytes.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Most header lines that are taken. Browsers send some 20.
const HEADERS_MAX: usize = 64;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// HEAD: the answer without its body.
    pub is_head: bool,
    /// Without the query.
    pub path: &'a str,
    /// In which form metrics are wanted.
    pub format: Format,
}

/// How metrics are written. Source: the OpenMetrics specification, and Prometheus, "Exposition formats".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// OpenMetrics 1.0.0
    OpenMetrics,
    /// Prometheus text 0.0.4
    Text,
}

impl Format {
    /// As it stands in `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Why a request is not answered with what it asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Not HTTP.
    Malformed,
    /// There is no such path.
    NotFound,
    /// Neither GET nor HEAD.
    Method,
    /// The head did not come in time.
    Late,
    /// The head is longer than [`HEAD_BYTES_MAX`], or has too many lines.
    TooLarge,
    /// HTTP, but not 1.0 or 1.1.
    Version,
}

impl Refusal {
    /// The status code and its phrase. Source: RFC 9110, section 15; RFC 6585, section 5.
    #[must_use]
    pub fn status(self) -> &'static str {
        match self {
            Self::Malformed => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
            Self::Late => "408 Request Timeout",
            Self::TooLarge => "431 Request Header Fields Too Large",
            Self::Version => "505 HTTP Version Not Supported",
        }
    }
}

/// Reads the head that `bytes` begin with; none if it is not complete yet. What follows it is ignored.
///
/// # Errors
/// What is wrong with it, as soon as that shows.
pub fn parse(bytes: &[u8]) -> Result<Option<Request<'_>>, Refusal> {
    let head = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) if head.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(Status::Partial) | Err(Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        Err(Error::Version) => return Err(Refusal::Version),
        Err(_) => return Err(Refusal::Malformed),
    }
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let is_head = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(Refusal::Method),
    };
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    Ok(Some(Request { is_head, path, format: wanted(request.headers) }))
}

/// The one that `Accept` likes better, OpenMetrics when it likes both as much, or none, or says nothing.
fn wanted(headers: &[Header<'_>]) -> Format {
    let accepts = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("accept"));
    let ranges: Vec<&str> = accepts
        .filter_map(|header| std::str::from_utf8(header.value).ok())
        .flat_map(|value| value.split(','))
        .collect();
    let text = quality(&ranges, "text", "text/plain");
    if text > quality(&ranges, "application", "application/openmetrics-text") {
        Format::Text
    } else {
        Format::OpenMetrics
    }
}

/// How much a media type is liked, in thousandths: what the most precise of the ranges that it is in says. Versions and
/// character sets are not looked at. Source: RFC 9110, section 12.5.1.
fn quality(ranges: &[&str], family: &str, media: &str) -> u16 {
    let precision_and_weight = |range: &&str| {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next()?;
        let precision = if name.eq_ignore_ascii_case(media) {
            2
        } else if name.split_once("/*") == Some((family, "")) {
            1
        } else if name == "*/*" {
            0
        } else {
            return None;
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        Some((precision, weight.map_or(1000, thousandths)))
    };
    ranges.iter().filter_map(precision_and_weight).max().map_or(0, |(_, weight)| weight)
}

/// From 0 to 1; what is not a number counts as nothing.
fn thousandths(weight: &str) -> u16 {
    let weight: f32 = weight.parse().unwrap_or_default();
    (weight.clamp(0.0, 1.0) * 1000.0) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, format: Format) -> Result<Option<Request<'_>>, Refusal> {
        Ok(Some(Request { is_head: false, path, format }))
    }

    #[test]
    fn a_head_is_complete_with_its_empty_line_and_cut_anywhere_it_is_not() {
        let whole = b"GET /metrics?name=x HTTP/1.1\r\nHost: here\r\nAccept: text/plain\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(parse(whole), request("/metrics", Format::Text));
        assert_eq!(parse(&[whole, &b"what follows"[..]].concat()), request("/metrics", Format::Text));
        assert_eq!(parse(b"GET / HTTP/1.0\n\n"), request("/", Format::OpenMetrics));
        let head = Request { is_head: true, path: "/readyz", format: Format::OpenMetrics };
        assert_eq!(parse(b"HEAD /readyz HTTP/1.1\r\n\r\n"), Ok(Some(head)));
    }

    #[test]
    fn what_is_wrong_has_its_status() {
        let long = [b"GET /", &[b'a'; HEAD_BYTES_MAX][..]].concat();
        let many = ["GET / HTTP/1.1\r\n", &"a: b\r\n".repeat(HEADERS_MAX + 1), "\r\n"].concat();
        for (bytes, refusal) in [
            (&b"POST / HTTP/1.1\r\n\r\n"[..], Refusal::Method),
            (b"get / HTTP/1.1\r\n\r\n", Refusal::Method),
            (b"\x16\x03\x01\x02\0", Refusal::Malformed),
            (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", Refusal::Malformed),
            (b"GET /\0 HTTP/1.1\r\n\r\n", Refusal::Malformed),
            (b"PRI * HTTP/2.0\r\n\r\n", Refusal::Version),
            (&long, Refusal::TooLarge),
            (&long[..HEAD_BYTES_MAX], Refusal::TooLarge),
            (many.as_bytes(), Refusal::TooLarge),
        ] {
            assert_eq!(parse(bytes), Err(refusal), "{}", bytes.escape_ascii());
        }
        assert_eq!(parse(&long[..HEAD_BYTES_MAX - 1]), Ok(None));
    }

    #[test]
    fn the_accept_header_chooses_the_form_of_the_metrics() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            (prometheus_2, Format::OpenMetrics),
            ("", Format::OpenMetrics),
            ("*/*", Format::OpenMetrics),
            ("application/json", Format::OpenMetrics),
            ("text/plain", Format::Text),
            ("TEXT/Plain; version=0.0.4", Format::Text),
            ("text/plain;version=0.0.4;q=0.2,*/*;q=0.1", Format::Text),
            ("text/*", Format::Text),
            ("text/plain;q=0", Format::OpenMetrics),
            ("text/plain;q=0.5, application/*;q=0.4", Format::Text),
            ("text/plain;q=0.5, application/*;q=0.4, application/openmetrics-text", Format::OpenMetrics),
            ("text/plain;q=nan, application/openmetrics-text;q=inf, ;;,", Format::OpenMetrics),
        ] {
            let head = format!("GET / HTTP/1.1\r\naccept: {accept}\r\n\r\n");
            assert_eq!(parse(head.as_bytes()), request("/", format), "{accept}");
        }
        let twice =
            b"GET / HTTP/1.1\r\nAccept: text/plain;q=0.5\r\nAccept: application/openmetrics-text\r\n\r\n";
        assert_eq!(parse(twice), request("/", Format::OpenMetrics));
    }
}
