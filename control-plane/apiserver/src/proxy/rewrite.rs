//! Pages seen through the proxy: links that are absolute on their own host lead through the proxy too.
//! Upstream: `apimachinery/pkg/util/proxy` (`Transport`).

use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::{Compression, write::GzDecoder, write::GzEncoder};
use futures::{StreamExt as _, stream};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::body::Frame;

use crate::connect::{Body, ConnectResponse};

/// Which attributes of which elements are links (HTML 4.01, HTML 5).
const LINKS: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// Elements whose content is text, whatever it looks like.
const RAW: [&str; 9] = [
    "iframe",
    "noembed",
    "noframes",
    "plaintext",
    "script",
    "style",
    "textarea",
    "title",
    "xmp",
];
/// A longer tag is passed on as it is.
const TAG_LIMIT: usize = 64 << 10;

/// Where a page stands, and where its host believes to stand.
#[derive(Debug, Clone)]
pub struct Links {
    /// The request's path up to and including `/proxy`.
    prefix: String,
    /// The name by which the client knows us.
    host: String,
    backend: String,
}

impl Links {
    pub fn new(path: &str, rest: &str, host: &str, backend: String) -> Self {
        let prefix = path.strip_suffix(rest).unwrap_or(path).trim_end_matches('/');
        Self {
            prefix: prefix.to_owned(),
            host: host.to_owned(),
            backend,
        }
    }

    fn rewrite(&self, link: &str) -> Option<String> {
        let after_scheme = link.split_once("//").filter(|(scheme, _)| {
            scheme.is_empty()
                || scheme
                    .strip_suffix(':')
                    .is_some_and(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        });
        let (origin, path) = match after_scheme {
            Some((_, rest)) => {
                let length = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (host, path) = rest.split_at(length);
                if host == self.host {
                    (&link[..link.len() - path.len()], path)
                } else if host == self.backend {
                    ("", path)
                } else {
                    return None;
                }
            }
            None => ("", link),
        };
        if !path.starts_with('/') {
            return None;
        }
        let prefix = if path.starts_with(&self.prefix) {
            ""
        } else {
            &self.prefix
        };
        Some(format!("{origin}{prefix}{path}"))
    }

    pub fn apply(self, mut response: ConnectResponse) -> ConnectResponse {
        let headers = response.headers_mut();
        if let Some(location) = headers.get(LOCATION) {
            let rewritten = location.to_str().ok().and_then(|location| self.rewrite(location));
            if let Some(value) = rewritten.and_then(|location| HeaderValue::from_str(&location).ok()) {
                headers.insert(LOCATION, value);
            }
            return response;
        }
        let Some(codec) = codec(headers).filter(|_| is_html(headers)) else {
            return response;
        };
        headers.remove(CONTENT_LENGTH);
        response.map(|body| rewritten(body, Page::new(self), codec))
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn is_html(headers: &HeaderMap) -> bool {
    let (kind, _) = text(headers, &CONTENT_TYPE)
        .split_once(';')
        .unwrap_or((text(headers, &CONTENT_TYPE), ""));
    kind.trim().eq_ignore_ascii_case("text/html")
}

enum Codec {
    Plain,
    Gzip(Box<(GzDecoder<Vec<u8>>, GzEncoder<Vec<u8>>)>),
}

/// `None`: an encoding in which nothing can be found.
fn codec(headers: &HeaderMap) -> Option<Codec> {
    match text(headers, &CONTENT_ENCODING) {
        "" | "identity" => Some(Codec::Plain),
        "gzip" => Some(Codec::Gzip(Box::new((
            GzDecoder::new(Vec::new()),
            GzEncoder::new(Vec::new(), Compression::fast()),
        )))),
        _ => None,
    }
}

impl Codec {
    /// `chunk` is `None` at the end.
    fn pass(&mut self, page: &mut Page, chunk: Option<&[u8]>) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(page.feed(chunk)),
            Self::Gzip(both) => {
                let (decoder, encoder) = both.as_mut();
                if let Some(chunk) = chunk {
                    decoder.write_all(chunk)?;
                    decoder.flush()?;
                    let plain = std::mem::take(decoder.get_mut());
                    encoder.write_all(&page.feed(Some(&plain)))?;
                    encoder.flush()?;
                } else {
                    encoder.write_all(&page.feed(None))?;
                    encoder.try_finish()?;
                }
                Ok(std::mem::take(encoder.get_mut()))
            }
        }
    }
}

fn rewritten(body: Body, page: Page, codec: Codec) -> Body {
    let state = Some((BodyStream::new(body), page, codec));
    let frames = stream::try_unfold(state, |state| async move {
        let Some((mut frames, mut page, mut codec)) = state else {
            return Ok(None);
        };
        while let Some(frame) = frames.next().await.transpose()? {
            let Ok(chunk) = frame.into_data() else { continue };
            let out = codec.pass(&mut page, Some(&chunk))?;
            return Ok(Some((Frame::data(Bytes::from(out)), Some((frames, page, codec)))));
        }
        let out = codec.pass(&mut page, None)?;
        Ok(Some((Frame::data(Bytes::from(out)), None)))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A page as it passes by: only an unfinished tag is held back.
struct Page {
    links: Links,
    held: Vec<u8>,
    /// The element whose content is text.
    raw: Option<&'static str>,
}

impl Page {
    fn new(links: Links) -> Self {
        Self {
            links,
            held: Vec::new(),
            raw: None,
        }
    }

    fn feed(&mut self, chunk: Option<&[u8]>) -> Vec<u8> {
        let mut input = std::mem::take(&mut self.held);
        input.extend_from_slice(chunk.unwrap_or_default());
        let mut out = Vec::with_capacity(input.len() + 256);
        let mut rest = input.as_slice();
        while let Some(start) = rest.iter().position(|byte| *byte == b'<') {
            out.extend_from_slice(&rest[..start]);
            rest = &rest[start..];
            let Some(length) = token(rest, self.raw) else {
                if chunk.is_some() && rest.len() < TAG_LIMIT {
                    self.held = rest.to_vec();
                } else {
                    out.extend_from_slice(rest);
                }
                return out;
            };
            self.tag(&rest[..length], &mut out);
            rest = &rest[length..];
        }
        out.extend_from_slice(rest);
        out
    }

    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let closing = tag.get(1) == Some(&b'/');
        let name = name(&tag[1 + usize::from(closing)..]);
        let is = |known: &&str| name.eq_ignore_ascii_case(known.as_bytes());
        if closing {
            self.raw = self.raw.filter(|raw| !is(raw));
        } else if self.raw.is_none() && tag.len() > 1 {
            self.raw = RAW.iter().find(|raw| is(raw)).copied();
            if let Some((_, attributes)) = LINKS.iter().find(|(element, _)| is(element)) {
                return self.attributes(tag, 1 + name.len(), attributes, out);
            }
        }
        out.extend_from_slice(tag);
    }

    fn attributes(&self, tag: &[u8], from: usize, wanted: &[&str], out: &mut Vec<u8>) {
        let mut copied = 0;
        for (attribute, value) in attributes(tag, from) {
            let known = wanted
                .iter()
                .any(|wanted| tag[attribute.clone()].eq_ignore_ascii_case(wanted.as_bytes()));
            let link = std::str::from_utf8(&tag[value.clone()]).ok().filter(|_| known);
            if let Some(rewritten) = link.and_then(|link| self.links.rewrite(link)) {
                out.extend_from_slice(&tag[copied..value.start]);
                out.extend_from_slice(rewritten.as_bytes());
                copied = value.end;
            }
        }
        out.extend_from_slice(&tag[copied..]);
    }
}

fn name(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
    &bytes[..end.unwrap_or(bytes.len())]
}

/// How long what begins with `<` is: a comment, a tag, or a single `<`; `None` if its end is not there yet.
fn token(bytes: &[u8], raw: Option<&str>) -> Option<usize> {
    if let Some(raw) = raw {
        let end = 2 + raw.len();
        return if bytes.len() > end {
            let ends = bytes[1] == b'/' && name(&bytes[2..]).eq_ignore_ascii_case(raw.as_bytes());
            if ends { tag_end(bytes) } else { Some(1) }
        } else {
            None
        };
    }
    match bytes.get(1)? {
        b'!' if bytes.starts_with(b"<!--") => {
            let end = bytes[4..].windows(3).position(|window| window == b"-->")?;
            Some(4 + end + 3)
        }
        b'!' if b"<!--".starts_with(bytes) => None,
        byte if byte.is_ascii_alphabetic() || *byte == b'/' => tag_end(bytes),
        _ => Some(1),
    }
}

/// The `>` that is in no quotes.
fn tag_end(bytes: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in bytes.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') if bytes[..at].trim_ascii_end().ends_with(b"=") => quote = Some(*byte),
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
    }
    None
}

type Span = std::ops::Range<usize>;

/// Names and values of a whole tag, without quotes.
fn attributes(tag: &[u8], mut at: usize) -> Vec<(Span, Span)> {
    let skip = |from: usize, test: fn(u8) -> bool| {
        let found = tag[from..].iter().position(|byte| !test(*byte));
        found.map_or(tag.len(), |length| from + length)
    };
    let mut found = Vec::new();
    while at < tag.len() {
        at = skip(at, |byte| {
            byte.is_ascii_whitespace() || byte == b'/' || byte == b'>' || byte == b'='
        });
        let end = skip(at, |byte| !byte.is_ascii_whitespace() && !b"/>=".contains(&byte));
        let equals = skip(end, |byte| byte.is_ascii_whitespace());
        if tag.get(equals) != Some(&b'=') {
            at = end;
            continue;
        }
        let start = skip(equals + 1, |byte| byte.is_ascii_whitespace());
        let value = match tag.get(start) {
            Some(quote @ (b'"' | b'\'')) => {
                let length = tag[start + 1..].iter().position(|byte| byte == quote);
                start + 1..length.map_or(tag.len(), |length| start + 1 + length)
            }
            _ => start..skip(start, |byte| !byte.is_ascii_whitespace() && byte != b'>'),
        };
        found.push((at..end, value.clone()));
        at = (value.end + 1).min(tag.len());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "/api/v1/namespaces/n/pods/p/proxy";

    fn links() -> Links {
        Links::new(&format!("{PREFIX}/x/y"), "x/y", "api:6443", "10.0.0.1:80".into())
    }

    #[test]
    fn only_absolute_links_to_the_same_host_lead_through_the_proxy() {
        for (link, expected) in [
            ("/a?b=//c", Some(format!("{PREFIX}/a?b=//c"))),
            ("a/b", None),
            ("#x", None),
            ("mailto:a@b", None),
            ("http://elsewhere/a", None),
            ("//elsewhere/a", None),
            ("http://10.0.0.1:80/a/", Some(format!("{PREFIX}/a/"))),
            ("https://api:6443/a", Some(format!("https://api:6443{PREFIX}/a"))),
            (&format!("{PREFIX}/a"), Some(format!("{PREFIX}/a"))),
        ] {
            assert_eq!(links().rewrite(link), expected, "{link}");
        }
        for (path, rest) in [
            (PREFIX, ""),
            (&format!("{PREFIX}/"), ""),
            (&format!("{PREFIX}/a/"), "a/"),
        ] {
            assert_eq!(Links::new(path, rest, "", String::new()).prefix, PREFIX, "{path}");
        }
    }

    #[test]
    fn pages_are_the_same_however_they_arrive() {
        let page = r#"<!DOCTYPE html><!-- <a href="/no"> --><A class=x HREF = '/one' href="two">1 < 2</a>
            <img src=/three alt="a > b"/><p href="/no"><script src="/four">if (a<b) "<a href='/no'>"</script><a href="/fiv"#;
        let expected = format!(
            r#"<!DOCTYPE html><!-- <a href="/no"> --><A class=x HREF = '{PREFIX}/one' href="two">1 < 2</a>
            <img src={PREFIX}/three alt="a > b"/><p href="/no"><script src="{PREFIX}/four">if (a<b) "<a href='/no'>"</script><a href="/fiv"#
        );
        for size in [1, 2, 3, 7, 64, page.len()] {
            let mut seen = Page::new(links());
            let mut out: Vec<u8> = page
                .as_bytes()
                .chunks(size)
                .flat_map(|chunk| seen.feed(Some(chunk)))
                .collect();
            out.extend(seen.feed(None));
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{size}");
        }
    }

    #[tokio::test]
    async fn compressed_pages_stay_compressed_and_other_kinds_untouched() {
        let page = r#"<a href="/x">"#;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(page.as_bytes()).unwrap();
        let gzip = gzip.finish().unwrap();
        for (kind, encoding, body, changes) in [
            ("text/html; charset=utf-8", "", page.as_bytes(), true),
            ("text/html", "gzip", &gzip, true),
            ("text/html", "br", page.as_bytes(), false),
            ("text/plain", "", page.as_bytes(), false),
        ] {
            let response = http::Response::builder()
                .header(CONTENT_TYPE, kind)
                .header(CONTENT_LENGTH, body.len());
            let full =
                http_body_util::Full::new(Bytes::copy_from_slice(body)).map_err(|never| match never {});
            let response = response
                .header(CONTENT_ENCODING, encoding)
                .body(full.boxed_unsync())
                .unwrap();
            let answer = links().apply(response);
            assert_eq!(
                answer.headers().contains_key(CONTENT_LENGTH),
                !changes,
                "{kind} {encoding}"
            );
            let mut bytes = answer.into_body().collect().await.unwrap().to_bytes().to_vec();
            if encoding == "gzip" {
                let mut decoder = GzDecoder::new(Vec::new());
                decoder.write_all(&bytes).unwrap();
                bytes = decoder.finish().unwrap();
            }
            let prefix = if changes { PREFIX } else { "" };
            assert_eq!(
                String::from_utf8(bytes).unwrap(),
                format!(r#"<a href="{prefix}/x">"#)
            );
        }
    }
}
