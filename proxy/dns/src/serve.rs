//! One question, one answer.

use std::sync::Arc;

use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{
    Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_server::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use rand::seq::SliceRandom;

use crate::forward::{Forwarder, Transport};
use crate::zone::{Found, Zone};

/// How many aliases are followed.
const ALIASES: usize = 8;

/// The bytes a client without EDNS takes, and the most we send over UDP (what passes everywhere unfragmented).
const UDP_BYTES: (u16, u16) = (512, 1232);

/// What answers: the cluster's names, or the node's name servers.
#[derive(Clone)]
pub struct Handler {
    pub zone: Arc<Zone>,
    pub forwarder: Arc<Forwarder>,
}

/// An answer's parts.
#[derive(Default)]
struct Answer {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
    truncated: bool,
}

impl Answer {
    fn error(code: ResponseCode) -> Self {
        Self {
            code,
            ..Self::default()
        }
    }
}

impl Handler {
    async fn answer(&self, request: &Request) -> Answer {
        let metadata = &request.metadata;
        if metadata.message_type != MessageType::Query || metadata.op_code != OpCode::Query {
            return Answer::error(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else {
            return Answer::error(ResponseCode::FormErr);
        };
        let (name, kind) = (info.query.original().name(), info.query.query_type());
        if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return Answer::error(ResponseCode::Refused);
        }
        if info.query.query_class() != DNSClass::IN {
            return Answer::error(ResponseCode::NotImp);
        }
        let transport = match request.protocol() {
            Protocol::Udp => Transport::Udp,
            _ => Transport::Tcp,
        };
        match self.zone.find(name, kind) {
            Found::NotOurs if !metadata.recursion_desired => Answer::error(ResponseCode::Refused),
            Found::NotOurs => self.relay(request.as_slice(), transport).await,
            found => self.local(found, kind, transport).await,
        }
    }

    async fn relay(&self, question: &[u8], transport: Transport) -> Answer {
        match self.forwarder.ask(question, transport).await {
            Some(message) => Answer {
                code: message.metadata.response_code,
                authoritative: false,
                truncated: message.metadata.truncation,
                answers: message.answers,
                authorities: message.authorities,
                additionals: message.additionals,
            },
            None => Answer::error(ResponseCode::ServFail),
        }
    }

    async fn local(&self, mut found: Found, kind: RecordType, transport: Transport) -> Answer {
        let mut answer = Answer {
            authoritative: true,
            ..Answer::default()
        };
        for _ in 0..ALIASES {
            match found {
                Found::Records(records, more) => {
                    let alias = alias(&records, kind);
                    answer.answers.extend(in_turn(records));
                    answer.additionals.extend(more);
                    // Clients are stubs: they expect the alias's addresses along with it.
                    let Some(target) = alias else {
                        return answer;
                    };
                    found = self.zone.find(&target, kind);
                    if found == Found::NotOurs {
                        let question = question(target, kind);
                        let rest = self.relay(&question, transport).await;
                        answer.code = rest.code;
                        answer.truncated = rest.truncated;
                        answer.answers.extend(rest.answers);
                        answer.authorities.extend(rest.authorities);
                        return answer;
                    }
                }
                Found::NoData | Found::NoName => {
                    if found == Found::NoName {
                        answer.code = ResponseCode::NXDomain;
                    }
                    answer.authorities.push(self.zone.authority());
                    return answer;
                }
                Found::NotOurs => break,
            }
        }
        Answer::error(ResponseCode::ServFail)
    }
}

/// The records with their addresses in an order that varies: many clients take the first, and each endpoint is to have its share of them
/// (as CoreDNS' plugin `loadbalance` does).
fn in_turn(mut records: Vec<Record>) -> Vec<Record> {
    let is_address = |record: &Record| matches!(record.data, RData::A(_) | RData::AAAA(_));
    if records.iter().all(is_address) {
        records.shuffle(&mut rand::rng());
    }
    records
}

/// Where to go on, if all there is is an alias and something else was asked for.
fn alias(records: &[Record], kind: RecordType) -> Option<Name> {
    if matches!(kind, RecordType::CNAME | RecordType::ANY) {
        return None;
    }
    records.iter().find_map(|record| match &record.data {
        RData::CNAME(target) => Some(target.0.clone()),
        _ => None,
    })
}

fn question(name: Name, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    message.to_vec().unwrap_or_default()
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let answer = self.answer(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = answer.authoritative;
        metadata.recursion_available = true;
        metadata.response_code = answer.code;
        metadata.truncation = answer.truncated;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(UDP_BYTES.0, UDP_BYTES.1));
            edns.set_version(0);
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let message = builder.build(
            metadata,
            &answer.answers,
            &answer.authorities,
            [],
            &answer.additionals,
        );
        match response.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "an answer could not be sent");
                metadata.response_code = ResponseCode::ServFail;
                ResponseInfo::from(hickory_server::proto::op::Header {
                    metadata,
                    counts: Default::default(),
                })
            }
        }
    }
}
