"""Bodies in the shapes that vendors document; each names its document. The numbers are made up."""

import csv
import gzip
import io
import json
from typing import Any

# AWS Billing guide, "Finding available price list files": region index.
REGION_INDEX: dict[str, Any] = {
    "formatVersion": "v1.0",
    "disclaimer": "This pricing list is for informational purposes only.",
    "publicationDate": "2026-07-20T22:08:04Z",
    "regions": {
        code: {
            "regionCode": code,
            "currentVersionUrl": f"/offers/v1.0/aws/AmazonEC2/20260720220804/{code}/index.json",
        }
        for code in ("us-east-1", "eu-west-1", "us-west-2-lax-1")
    },
}
# AWS Billing guide, "Reading the service price list file": five rows of metadata, then the columns' names.
# Columns and cells as in a file of 2025-09 found in a public repository (c6i.large, Tokyo).
PREAMBLE = [
    ["FormatVersion", "v1.0"],
    ["Disclaimer", "This pricing list is for informational purposes only."],
    ["Publication Date", "2026-07-20T22:08:04Z"],
    ["Version", "20260720220804"],
    ["OfferCode", "AmazonEC2"],
]
PRICE_COLUMNS = [
    "SKU", "OfferTermCode", "RateCode", "TermType", "PriceDescription", "EffectiveDate", "StartingRange",
    "EndingRange", "Unit", "PricePerUnit", "Currency", "RelatedTo", "LeaseContractLength", "PurchaseOption",
    "OfferingClass", "Product Family", "serviceCode", "Location", "Location Type", "Instance Type", "Tenancy",
    "Operating System", "License Model", "usageType", "operation", "CapacityStatus", "MarketOption",
    "Pre Installed S/W", "Region Code",
]  # fmt: skip
LINUX = {
    "SKU": "ABC", "OfferTermCode": "JRTCKXETXF", "TermType": "OnDemand", "EffectiveDate": "2026-07-01",
    "Unit": "Hrs", "Currency": "USD", "Product Family": "Compute Instance", "serviceCode": "AmazonEC2",
    "Tenancy": "Shared", "Operating System": "Linux", "License Model": "No License required",
    "usageType": "BoxUsage:m5.large", "operation": "RunInstances", "CapacityStatus": "Used",
    "MarketOption": "OnDemand", "Pre Installed S/W": "",
    "Instance Type": "m5.large", "PricePerUnit": "0.0960000000",
}  # fmt: skip


def price_csv(*rows: dict[str, str], columns: list[str] | None = None) -> bytes:
    """A price list of these rows over ``LINUX``."""
    names = columns or PRICE_COLUMNS
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows(PREAMBLE)
    writer.writerow(names)
    writer.writerows([{**LINUX, **row}.get(name, "") for name in names] for row in rows)
    return text.getvalue().encode()


# spot-bid-advisor.s3.amazonaws.com, as copied by alexei-led/spotinfo (2025-06-28).
ADVISOR: dict[str, Any] = {
    "global_rate": "<10%",
    "instance_types": {"m5.large": {"emr": False, "cores": 2, "ram_gb": 8.0}},
    "ranges": [
        {"index": 0, "label": "<5%", "dots": 0, "max": 5},
        {"index": 1, "label": "5-10%", "dots": 1, "max": 11},
        {"index": 2, "label": "10-15%", "dots": 2, "max": 16},
        {"index": 3, "label": "15-20%", "dots": 3, "max": 22},
        {"index": 4, "label": ">20%", "dots": 4, "max": 100},
    ],
    "spot_advisor": {
        "us-east-1": {
            "Linux": {"m5.large": {"s": 61, "r": 1}, "c5.large": {"s": 55, "r": 4}},
            "Windows": {"m5.large": {"s": 31, "r": 0}},
        },
        "eu-west-1": {"Linux": {"m5.large": {"s": 70, "r": 0}, "x9.odd": {"s": 1, "r": 9}}},
    },
}


def retail(item: dict[str, Any]) -> dict[str, Any]:
    """An item of learn.microsoft.com "Azure Retail Prices REST API", its example of a virtual machine."""
    return {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": 0.226,
        "unitPrice": 0.226,
        "armRegionName": "koreacentral",
        "location": "KR Central",
        "effectiveStartDate": "2021-11-01T00:00:00Z",
        "meterId": "000a794b-bdb0-58be-a0cd-0c3a0f222923",
        "meterName": "D4s v5",
        "productId": "DZH318Z08NRP",
        "skuId": "DZH318Z08NRP/0012",
        "productName": "Virtual Machines Dsv5 Series",
        "skuName": "Standard_D4s_v5",
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": "Standard_D4s_v5",
        **item,
    }


def retail_page(*items: dict[str, Any], link: str | None = None) -> dict[str, Any]:
    """The envelope of a page of Azure Retail Prices."""
    return {
        "BillingCurrency": "USD",
        "CustomerEntityId": "Default",
        "CustomerEntityType": "Retail",
        "Items": [retail(item) for item in items],
        "NextPageLink": link,
        "Count": len(items),
    }


def graph_page(*rows: dict[str, Any], token: str = "") -> dict[str, Any]:
    """The answer of Resource Graph ``resources`` with ``resultFormat: objectArray``."""
    page: dict[str, Any] = {
        "totalRecords": len(rows),
        "count": len(rows),
        "data": list(rows),
        "facets": [],
        "resultTruncated": "true" if token else "false",
    }
    return {**page, "$skipToken": token} if token else page


# learn.microsoft.com "Spot Placement Score", its example of an answer.
AZURE_SCORES: dict[str, Any] = {
    "desiredLocations": ["koreacentral", "japaneast"],
    "desiredSizes": [{"sku": "Standard_D4s_v5"}],
    "desiredCount": 1,
    "availabilityZones": True,
    "placementScores": [
        {"sku": "Standard_D4s_v5", "region": "koreacentral", "availabilityZone": "1", "score": "High",
         "isQuotaAvailable": True},
        {"sku": "Standard_D4s_v5", "region": "japaneast", "availabilityZone": "2",
         "score": "DataNotFoundOrStale", "isQuotaAvailable": False},
    ],
}  # fmt: skip


def sku(text: str, nanos: int, usage: str = "OnDemand", family: str = "Compute") -> dict[str, Any]:
    """A SKU of Cloud Billing v1 ``services.skus.list`` (reference page of the method)."""
    return {
        "name": "services/6F81-5844-456A/skus/D062-BDF8-38B3",
        "skuId": "D062-BDF8-38B3",
        "description": text,
        "category": {
            "serviceDisplayName": "Compute Engine",
            "resourceFamily": family,
            "resourceGroup": "CPU",
            "usageType": usage,
        },
        "serviceRegions": ["us-central1"],
        "pricingInfo": [
            {
                "effectiveTime": "2026-07-30T10:00:00Z",
                "pricingExpression": {
                    "usageUnit": "h",
                    "tieredRates": [
                        {
                            "startUsageAmount": 0,
                            "unitPrice": {"currencyCode": "USD", "units": "0", "nanos": nanos},
                        }
                    ],
                },
            }
        ],
    }


# google-cloud-compute 1.56 CapacityHistoryResponse; intervals as in a public test of 2026-07.
CAPACITY_HISTORY: dict[str, Any] = {
    "machineType": "n2-standard-4",
    "location": "regions/us-central1",
    "preemptionHistory": [
        {"interval": {"startTime": "2026-07-01T07:00:00Z", "endTime": "2026-07-02T07:00:00Z"},
         "preemptionRate": 0.081},
        {"interval": {"startTime": "2026-07-02T07:00:00Z", "endTime": "2026-07-03T07:00:00Z"},
         "preemptionRate": 0.0},
    ],
    "priceHistory": [
        {"interval": {"startTime": "2026-06-15T07:00:00Z", "endTime": "2026-07-03T07:00:00Z"},
         "listPrice": {"currencyCode": "USD", "units": "0", "nanos": 46_000_000}},
    ],
}  # fmt: skip
# google-cloud-compute 1.56 CapacityAdviceResponse.
CAPACITY: dict[str, Any] = {
    "recommendations": [
        {
            "scores": {"obtainability": 0.7, "estimatedUptime": "86400s"},
            "shards": [
                {
                    "zone": "https://www.googleapis.com/compute/v1/projects/p/zones/us-central1-a",
                    "machineType": "n2-standard-4",
                    "instanceCount": 1,
                    "provisioningModel": "SPOT",
                }
            ],
        }
    ]
}
# skypilot-org/skypilot-catalog catalogs/v8: headers and rows of the three files.
SKYPILOT = {
    "aws": "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,"
    "AvailabilityZone,Arch\n"
    "m5.large,,,2.0,8.0,,0.096,0.0391,us-east-1,use1-az1,x86_64\n"
    "m5.large,,,2.0,8.0,,0.096,0.0402,us-east-1,use1-az2,x86_64\n"
    "m7g.large,,,2.0,8.0,,0.0816,,us-east-1,use1-az3,arm64\n",
    "azure": "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,"
    "Generation\n"
    "Standard_D4s_v5,,,4.0,16.0,,0.192,0.0384,eastus,V2\n"
    "Standard_NC4as_T4_v3,T4,1.0,4.0,28.0,,0.526,0.0526,eastus,V1,spare\n",
    "gcp": "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,"
    "Price,SpotPrice\n"
    "n2-standard-4,4.0,16.0,,,,us-central1,us-central1-a,0.194236,0.046\n"
    ",,,T4,1.0,,us-central1,us-central1-a,0.35,0.11\n"
    "a2-highgpu-1g,12.0,85.0,A100,1.0,,us-central1,us-central1-a,3.67,1.1\n",
}
# ddps-lab/spotlake-open-data README: eleven columns, missing values are empty cells.
SPOTLAKE = (
    "Time,InstanceType,Region,AZ,SPS,T3,T2,IF,OndemandPrice,SpotPrice,Savings\n"
    "2025-12-31 23:50:00,m7i.large,us-east-1,use1-az1,3,50,50,3.0,0.1008,0.0412,59\n"
    "2025-12-31 23:50:00,p5.48xlarge,us-east-1,use1-az2,9,1,5,1.0,55.04,16.1,70\n"
    "2025-12-31 23:50:00,x2iezn.2xlarge,us-east-1,use1-az3,,,,,,0.4,\n"
)


def spotlake() -> bytes:
    """A snapshot as the bucket holds it."""
    return gzip.compress(SPOTLAKE.encode())


def server(vendor: str, kind: str, score: float | None) -> dict[str, Any]:
    """A server of Spare Cores' keeper, ``GET /servers`` (fields named in its tests)."""
    return {
        "vendor_id": vendor,
        "server_id": kind,
        "api_reference": kind,
        "vcpus": 2,
        "memory_amount": 8192,
        "min_price": 0.04,
        "selected_benchmark_score": score,
        "vendor": {"vendor_id": vendor, "name": vendor},
        "price_breakdown": {},
    }


# botocore's service model of EC2 (2016-11-15, protocol "ec2"): element names of the two answers.
def spot_prices_xml(*rows: tuple[str, str, str, str, str], token: str = "") -> bytes:
    """DescribeSpotPriceHistory: (zone, zone id, type, price, time) each."""
    items = "".join(
        f"<item><instanceType>{kind}</instanceType><productDescription>Linux/UNIX</productDescription>"
        f"<spotPrice>{price}</spotPrice><timestamp>{when}</timestamp><availabilityZone>{zone}</availabilityZone>"
        + (f"<availabilityZoneId>{zone_id}</availabilityZoneId>" if zone_id else "")
        + "</item>"
        for zone, zone_id, kind, price, when in rows
    )
    return _xml(
        "DescribeSpotPriceHistory", f"<spotPriceHistorySet>{items}</spotPriceHistorySet>", token
    )


def zones_xml(*rows: tuple[str, str]) -> bytes:
    """DescribeAvailabilityZones: (name, id) each."""
    items = "".join(
        f"<item><zoneName>{name}</zoneName><zoneId>{zone}</zoneId></item>" for name, zone in rows
    )
    return _xml(
        "DescribeAvailabilityZones", f"<availabilityZoneInfo>{items}</availabilityZoneInfo>", ""
    )


def scores_xml(*rows: tuple[str, str, int]) -> bytes:
    """GetSpotPlacementScores: (region, zone id, score) each."""
    items = "".join(
        f"<item><region>{region}</region><availabilityZoneId>{zone}</availabilityZoneId><score>{score}</score></item>"
        for region, zone, score in rows
    )
    return _xml(
        "GetSpotPlacementScores", f"<spotPlacementScoreSet>{items}</spotPlacementScoreSet>", ""
    )


def _xml(action: str, content: str, token: str) -> bytes:
    space = "http://ec2.amazonaws.com/doc/2016-11-15/"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><{action}Response xmlns="{space}"><requestId>r</requestId>'
        f"{content}<nextToken>{token}</nextToken></{action}Response>"
    ).encode()


def plan_rate(price: str, **more: Any) -> dict[str, Any]:
    """A result of DescribeSavingsPlansOfferingRates (botocore's model of Savings Plans, 2019-06-28)."""
    return {
        "savingsPlanOffering": {
            "offeringId": "o",
            "paymentOption": "No Upfront",
            "planType": "Compute",
            "durationSeconds": 31_536_000,
            "currency": "USD",
            "planDescription": "1 year No Upfront Compute Savings Plan",
        },
        "rate": price,
        "unit": "Hrs",
        "productType": "EC2",
        "serviceCode": "AmazonEC2",
        "usageType": "BoxUsage:m5.large",
        "operation": "RunInstances",
        "properties": [
            {"name": "region", "value": "us-east-1"},
            {"name": "instanceType", "value": "m5.large"},
            {"name": "instanceFamily", "value": "m5"},
            {"name": "productDescription", "value": "Linux/UNIX"},
            {"name": "tenancy", "value": "shared"},
        ],
        **more,
    }


def aws_error(code: str, message: str = "as documented") -> bytes:
    """An error of the EC2 API ("Error codes for the Amazon EC2 API")."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>{code}</Code>'
        f"<Message>{message}</Message></Error></Errors><RequestID>r</RequestID></Response>"
    ).encode()


def dumps(value: Any) -> bytes:
    """JSON."""
    return json.dumps(value).encode()
