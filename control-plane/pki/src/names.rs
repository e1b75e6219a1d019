//! What a certificate says about its holder: subject, alternative names, and permitted usages.

use std::net::IpAddr;

use x509_parser::extensions::GeneralName;
use x509_parser::x509::X509Name;
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, Tag};

const COMMON_NAME: &[u64] = &[2, 5, 4, 3];
const ORGANIZATION: &[u64] = &[2, 5, 4, 10];

/// The parts of a distinguished name Kubernetes looks at: CN is the user, each O is a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
}

impl Subject {
    pub fn new(common_name: impl Into<String>, organizations: &[&str]) -> Self {
        Self {
            common_name: common_name.into(),
            organizations: organizations.iter().map(|o| (*o).into()).collect(),
        }
    }

    pub(crate) fn from_x509(name: &X509Name<'_>) -> Self {
        let text =
            |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
        Self {
            common_name: name.iter_common_name().find_map(text).unwrap_or_default(),
            organizations: name.iter_organization().filter_map(text).collect(),
        }
    }

    pub(crate) fn to_der(&self) -> Vec<u8> {
        let attributes = self
            .organizations
            .iter()
            .map(|organization| (ORGANIZATION, organization))
            .chain([(COMMON_NAME, &self.common_name)]);
        crate::certificate::sequence(|name| {
            for (oid, value) in attributes {
                name.next().write_set(|set| {
                    set.next().write_sequence(|pair| {
                        pair.next().write_oid(&ObjectIdentifier::from_slice(oid));
                        pair.next().write_utf8_string(value);
                    });
                });
            }
        })
    }
}

/// Subject alternative names, in the four forms a CertificateSigningRequest may ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubjectAltNames {
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<IpAddr>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
}

impl SubjectAltNames {
    pub fn is_empty(&self) -> bool {
        self.dns_names.is_empty()
            && self.ip_addresses.is_empty()
            && self.emails.is_empty()
            && self.uris.is_empty()
    }

    pub(crate) fn add(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(dns) => self.dns_names.push((*dns).to_owned()),
            GeneralName::RFC822Name(email) => self.emails.push((*email).to_owned()),
            GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
            GeneralName::IPAddress(octets) => {
                if let Ok(v4) = <[u8; 4]>::try_from(*octets) {
                    self.ip_addresses.push(IpAddr::from(v4));
                } else if let Ok(v6) = <[u8; 16]>::try_from(*octets) {
                    self.ip_addresses.push(IpAddr::from(v6));
                }
            }
            _ => {}
        }
    }

    pub(crate) fn write(&self, writer: DERWriter<'_>) {
        writer.write_sequence(|names| {
            let texts = [(1, &self.emails), (2, &self.dns_names), (6, &self.uris)];
            for (tag, values) in texts {
                for value in values {
                    names
                        .next()
                        .write_tagged_implicit(Tag::context(tag), |name| name.write_bytes(value.as_bytes()));
                }
            }
            for address in &self.ip_addresses {
                let octets = match address {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                };
                names
                    .next()
                    .write_tagged_implicit(Tag::context(7), |name| name.write_bytes(&octets));
            }
        });
    }
}

/// A key usage, under the name a CertificateSigningRequest's `spec.usages` uses (certificates.k8s.io/v1 KeyUsage).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usage {
    DigitalSignature,
    KeyEncipherment,
    CertSign,
    CrlSign,
    ClientAuth,
    ServerAuth,
    Other(&'static str),
}

/// Name → bit of the keyUsage extension (RFC 5280, section 4.2.1.3).
const KEY_USAGES: &[(&str, u8)] = &[
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];

/// Name → object identifier of the extendedKeyUsage extension.
const EXTENDED_USAGES: &[(&str, &[u64])] = &[
    ("any", &[2, 5, 29, 37, 0]),
    ("server auth", &[1, 3, 6, 1, 5, 5, 7, 3, 1]),
    ("client auth", &[1, 3, 6, 1, 5, 5, 7, 3, 2]),
    ("code signing", &[1, 3, 6, 1, 5, 5, 7, 3, 3]),
    ("email protection", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("s/mime", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("ipsec end system", &[1, 3, 6, 1, 5, 5, 7, 3, 5]),
    ("ipsec tunnel", &[1, 3, 6, 1, 5, 5, 7, 3, 6]),
    ("ipsec user", &[1, 3, 6, 1, 5, 5, 7, 3, 7]),
    ("timestamping", &[1, 3, 6, 1, 5, 5, 7, 3, 8]),
    ("ocsp signing", &[1, 3, 6, 1, 5, 5, 7, 3, 9]),
    ("microsoft sgc", &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
    ("netscape sgc", &[2, 16, 840, 1, 113730, 4, 1]),
];

impl Usage {
    /// `None` for a name Kubernetes does not know.
    pub fn parse(name: &str) -> Option<Self> {
        let known = [
            Self::DigitalSignature,
            Self::KeyEncipherment,
            Self::CertSign,
            Self::CrlSign,
            Self::ClientAuth,
            Self::ServerAuth,
        ];
        known.into_iter().find(|usage| usage.name() == name).or_else(|| {
            let names = KEY_USAGES.iter().map(|(name, _)| *name);
            names
                .chain(EXTENDED_USAGES.iter().map(|(name, _)| *name))
                .find(|candidate| *candidate == name)
                .map(Self::Other)
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::DigitalSignature => "digital signature",
            Self::KeyEncipherment => "key encipherment",
            Self::CertSign => "cert sign",
            Self::CrlSign => "crl sign",
            Self::ClientAuth => "client auth",
            Self::ServerAuth => "server auth",
            Self::Other(name) => name,
        }
    }

    pub(crate) fn bit(self) -> Option<u8> {
        KEY_USAGES
            .iter()
            .find(|(name, _)| *name == self.name())
            .map(|(_, bit)| *bit)
    }

    pub(crate) fn extended_oid(self) -> Option<&'static [u64]> {
        EXTENDED_USAGES
            .iter()
            .find(|(name, _)| *name == self.name())
            .map(|(_, oid)| *oid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usage_name_round_trips_and_means_a_bit_or_an_oid() {
        let names = KEY_USAGES
            .iter()
            .map(|(n, _)| *n)
            .chain(EXTENDED_USAGES.iter().map(|(n, _)| *n));
        for name in names {
            let usage = Usage::parse(name).unwrap_or_else(|| panic!("{name} is not parsed"));
            assert_eq!(usage.name(), name);
            assert!(usage.bit().is_some() != usage.extended_oid().is_some(), "{name}");
        }
        assert_eq!(Usage::parse("Client Auth"), None);
    }
}
